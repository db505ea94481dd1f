"""The one clever place: takes complete text frames straight out of the received bytes, and leaves the rest to the
library.

websocket-client parses a frame in 3.5 to 4.5 µs of Python; a venue sends almost nothing but short, unfragmented text
frames. The invariant: for any stream of bytes, cut anywhere, `FrameStream.receive` gives the same messages in the
same order as `WebSocket.recv_data_frame` does, and raises where it raises. It holds because only a whole frame that
begins with FIN + text and carries no mask (RFC 6455, 5.2) is taken here, and only where the library itself stands
between two messages; everything else is handed to the library's own parser with the bytes in front of it untouched.

One `receive` reads the socket once, whoever parses: left alone, the library goes on reading until its frame is whole,
and a venue that trickles would hold the reader for ever.
"""

import socket
import ssl

from websocket import ABNF, WebSocket, WebSocketConnectionClosedException, WebSocketTimeoutException

_FIN_TEXT = 0x81
_LENGTH_16 = 126
_LENGTH_64 = 127
_READ = 1 << 18


class NothingYet(WebSocketTimeoutException):
    """Nothing came within the socket's timeout, or what came does not make a message whole: call again."""


def scan_text_frames(data: bytes, at: int = 0) -> tuple[list[bytes], int]:
    """The payloads of the whole text frames that stand in `data` from `at` on, and where the next frame begins."""
    payloads: list[bytes] = []
    append = payloads.append
    size = len(data)
    while at + 2 <= size and data[at] == _FIN_TEXT:
        length = data[at + 1]
        body = at + 2
        if length >= _LENGTH_16:
            if length > _LENGTH_64:  # masked: for the library
                break
            body += 2 if length == _LENGTH_16 else 8
            if body > size:
                break
            length = int.from_bytes(data[at + 2 : body])
        end = body + length
        if end > size:
            break
        append(data[body:end])
        at = end
    return payloads, at


class FrameStream(WebSocket):
    """A `WebSocket` that is read a chunk at a time."""

    def __init__(self, sock: socket.socket, *, max_message: int) -> None:
        super().__init__(enable_multithread=False, skip_utf8_validation=True)
        self.bytes_received = 0
        self.drained = False
        """Whether the last read found nothing in the socket."""
        self._tcp = sock
        self._max_message = max_message
        self._ahead = b""
        self._at = 0
        """How much of `_ahead` is taken."""
        self._since_message = 0
        self._may_read = False

    def receive(self) -> tuple[int, list[bytes]]:
        """The next messages as (opcode, payloads): any number of text messages, or one of another kind.

        Raises NothingYet, any other WebSocketException or OSError where the connection is of no more use.
        """
        self._may_read = True
        if self._inside_message():
            return self._receive_slowly()
        if self._at == len(self._ahead):
            self._read()
        payloads, self._at = scan_text_frames(self._ahead, self._at)
        if payloads:
            self._since_message = len(self._ahead) - self._at
            return ABNF.OPCODE_TEXT, payloads
        # Where a text frame of less than 64 KB is cut, the rest of it is read. A longer one is for the library, which
        # gathers its pieces in a list: adding each to the bytes before it takes time by the square of their number.
        ahead, at = self._ahead, self._at
        if ahead[at] == _FIN_TEXT and (len(ahead) == at + 1 or ahead[at + 1] < _LENGTH_64):
            self._read()
            return ABNF.OPCODE_TEXT, []
        return self._receive_slowly()

    def hang_up(self) -> None:
        """Close the socket, without a word."""
        self._tcp.close()

    def _receive_slowly(self) -> tuple[int, list[bytes]]:
        opcode, frame = self.recv_data_frame(control_frame=True)
        if not self._inside_message():  # a ping between two fragments ends no message
            self._since_message = len(self._ahead) - self._at
        return opcode, [frame.data]

    def _inside_message(self) -> bool:
        """Whether the library has begun to read a message: then only the library can end it."""
        parser = self.frame_buffer
        return bool(self.cont_frame.recving_frames or parser.header or parser.recv_buffer)

    def _recv(self, bufsize: int) -> bytes:
        """Where the library's parser gets its bytes."""
        if self._at == len(self._ahead):
            self._read()
        start = self._at
        self._at = min(start + bufsize, len(self._ahead))
        return self._ahead[start : self._at]

    def _read(self) -> None:
        """Add what the socket has to what lies ahead; once a `receive`."""
        if not self._may_read:
            raise NothingYet("not whole yet")
        self._may_read = False
        try:
            data = self._tcp.recv(_READ)
        except (TimeoutError, ssl.SSLWantReadError) as error:
            self.drained = True
            raise NothingYet("nothing came") from error
        self.drained = False
        if not data:
            raise WebSocketConnectionClosedException("the connection was closed without a close frame")
        self.bytes_received += len(data)
        self._since_message += len(data)
        if self._since_message > self._max_message:
            raise WebSocketConnectionClosedException(f"a message longer than {self._max_message} bytes")
        self._ahead = self._ahead[self._at :] + data
        self._at = 0
