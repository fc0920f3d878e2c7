from benchmarks.compare import row


def test_the_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_the_medians() -> None:
    """A machine that became ten times slower after the first pair does not matter."""
    assert row("CPU", [1.0, 10.0, 10.0], [2.0, 10.0, 11.0]) == "  CPU: base 10, new 10, ratio 1.100 (1.000 to 2.000)"


def test_a_metric_without_a_base_has_no_ratio() -> None:
    assert row("unseen", [0.0], [3.0]) == "  unseen: base 0, new 3, ratio -"
