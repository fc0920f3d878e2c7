"""hypercorn's HTTP/1.1 protocol with our own listeners, connections and shutdown.

Stock hypercorn on trio has four faults. One HTTP/2 request can kill the server. A client that has stopped reading is
never dropped. The application is not told about a shutdown. A broken response ends like a complete one. So this server
differs:

* An exception in one connection ends only that connection (`HttpConnection.run`). The server does not speak HTTP/2.
* Every write has a deadline. A write that times out, fails or is cancelled resets the connection. How much of it the
  client has is unknown, so the server sends nothing more.
* An incomplete response ends with a TCP reset (RST). An HTTP/1.0 body ends when its connection closes, so a FIN would
  look like success.
* On shutdown the application is told first, while the listeners are still open. A reader whose connection is cut can
  then reconnect.

Source of the classes and their behaviour: hypercorn 0.18, `trio/run.py`, `trio/tcp_server.py`, `protocol/h11.py`.
"""

from crucible_trio.server.config import Config
from crucible_trio.server.serving import serve

__all__ = ["Config", "serve"]
