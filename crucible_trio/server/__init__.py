"""hypercorn's HTTP/1.1 stack under a nursery of our own.

Stock hypercorn on trio can be killed from outside by one HTTP/2 request, cannot drop a client that has stopped reading,
tells the application nothing of a shutdown, and ends a broken response as if it were whole. What is different here:

* An exception in one connection ends that connection (`Connection.run`). HTTP/2 is not spoken at all.
* Every write has a deadline. A write that timed out, failed or was cancelled resets the connection: nobody knows what
  is out, so nothing may follow.
* A response that did not reach its end ends in a real RST. An HTTP/1.0 body ends by closing, so a FIN would read as
  success.
* On shutdown the application is told first, with the listeners still open, so that a cut reader can come back.

Source of the classes and their behaviour: hypercorn 0.18, `trio/run.py`, `trio/tcp_server.py`, `protocol/h11.py`.
"""

from crucible_trio.server.config import Config
from crucible_trio.server.serving import serve

__all__ = ["Config", "serve"]
