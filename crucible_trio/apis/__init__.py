"""The HTTP APIs, one folder for each. `kit` has the code that all of them share.

The folder of an API holds its request shapes, its fold and its routes. Only `kit`, modules named `routes.py` and
`crucible_trio.web` import Quart. To add an API, write its folder and add its class to the list in
`crucible_trio.web.app`.
"""
