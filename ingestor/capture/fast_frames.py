"""The one clever place: takes complete text frames straight out of the received bytes, and leaves the rest to the
library.

websocket-client parses a frame in 3.5 to 4.5 µs of Python; a venue sends almost nothing but short, unfragmented text
frames. The invariant: for any stream of bytes, cut anywhere, `FrameStream.receive` gives the same messages in the
same order as `WebSocket.recv_data_frame` does, and raises where it raises. It holds because only a whole frame that
begins with FIN + text and carries no mask (RFC 6455, 5.2) is taken here, and only where the library itself stands
between two messages; everything else is handed to the library's own parser with the bytes in front of it untouched.
"""

import socket
import ssl

from websocket import ABNF, WebSocket, WebSocketConnectionClosedException, WebSocketTimeoutException

_FIN_TEXT = 0x81
_LENGTH_16 = 126
_LENGTH_64 = 127
_READ = 1 << 18


def scan_text_frames(data: bytes) -> tuple[list[bytes], int]:
    """The payloads of the whole text frames at the front of `data`, and how many bytes they took."""
    payloads: list[bytes] = []
    append = payloads.append
    at, size = 0, len(data)
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
    """A `WebSocket` that is read a chunk at a time. With `fast` off every frame goes through the library's parser."""

    def __init__(self, sock: socket.socket, *, fast: bool, max_frame: int) -> None:
        super().__init__(enable_multithread=False, skip_utf8_validation=True)
        self.bytes_received = 0
        self._tcp = sock
        self._fast = fast
        self._max_frame = max_frame
        self._ahead = b""
        self._since_message = 0

    def receive(self) -> tuple[int, list[bytes]]:
        """The next messages as (opcode, payloads): any number of text messages, or one of another kind.

        An empty list means that no message is whole yet. Raises WebSocketException (a timeout included), OSError.
        """
        if not self._fast or self._inside_message():
            return self._receive_slowly()
        if not self._ahead:
            self._ahead = self._read(_READ)
        payloads, taken = scan_text_frames(self._ahead)
        if payloads:
            self._ahead = self._ahead[taken:]
            self._since_message = len(self._ahead)
            return ABNF.OPCODE_TEXT, payloads
        if self._text_frame_is_cut():
            self._ahead += self._read(_READ)
            return ABNF.OPCODE_TEXT, []
        return self._receive_slowly()

    def _receive_slowly(self) -> tuple[int, list[bytes]]:
        opcode, frame = self.recv_data_frame(control_frame=True)
        self._since_message = len(self._ahead)
        return opcode, [frame.data]

    def _inside_message(self) -> bool:
        """Whether the library has begun to read a message: then only the library can end it."""
        parser = self.frame_buffer
        return bool(self.cont_frame.recving_frames or parser.header or parser.recv_buffer)

    def _text_frame_is_cut(self) -> bool:
        """Whether what lies ahead is the beginning of a text frame as `scan_text_frames` takes them."""
        ahead = self._ahead
        return ahead[0] == _FIN_TEXT and (len(ahead) == 1 or ahead[1] <= _LENGTH_64)

    def _recv(self, bufsize: int) -> bytes:
        """Where the library's parser gets its bytes: first those that were read ahead."""
        if not self._ahead:
            return self._read(bufsize)
        given, self._ahead = self._ahead[:bufsize], self._ahead[bufsize:]
        return given

    def _read(self, size: int) -> bytes:
        try:
            data = self._tcp.recv(size)
        except (TimeoutError, ssl.SSLWantReadError) as error:
            raise WebSocketTimeoutException("nothing came") from error
        if not data:
            raise WebSocketConnectionClosedException("the connection was closed without a close frame")
        self.bytes_received += len(data)
        self._since_message += len(data)
        if self._since_message > self._max_frame:
            raise WebSocketConnectionClosedException(f"a message longer than {self._max_frame} bytes")
        return data
