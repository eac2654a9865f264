"""Container servers of nobody's: they remember what they are told, and answer as a script says. Not a script."""
import re
import socket
import threading

# What `answer` may say besides the bytes of a response: hang up, or be silent for longer than anybody waits.
DEAD, SILENT = object(), object()


class ContainerServers:
    """A subclass says what is answered: `answer(number, line)`, of a server and the first line of a request."""

    def __init__(self, program, count=1):
        self.program = program
        self.told, self.lock = [], threading.Lock()
        self.sockets = [socket.create_server(('127.0.0.1', 0), backlog=64) for _ in range(count)]
        self.ports = [s.getsockname()[1] for s in self.sockets]
        self.address = '127.0.0.1:%d' % self.ports[0]
        for number, s in enumerate(self.sockets):
            threading.Thread(target=self.accept, args=(number, s), daemon=True).start()

    def accept(self, number, s):
        while True:
            threading.Thread(target=self.serve, args=(number, s.accept()[0]), daemon=True).start()

    def serve(self, number, connection):
        with connection, connection.makefile('rb') as f:
            while True:
                line, headers = read_head(f)
                if not line:
                    return
                f.read(int(headers.get('content-length', 0)))
                agent = headers.pop('user-agent', '')
                assert re.fullmatch(self.program + r' \d+', agent), agent
                for name in ('connection', 'host', 'accept-encoding', 'content-length'):
                    headers.pop(name, None)
                headers['referer'] = re.sub('127.0.0.1:[0-9]+', 'HOST', headers['referer'])
                with self.lock:
                    self.told.append((number, line, sorted(headers.items())))
                answer = self.answer(number, line)
                if answer is SILENT:
                    connection.recv(1)
                if answer in (DEAD, SILENT):
                    return
                connection.sendall(answer)

    def take(self):
        """What was told since the last time. Who finds a kept connection closed asks again: that counts once."""
        with self.lock:
            told, self.told = self.told, []
        return sorted({repr(update): update for update in told}.values())


def read_head(f):
    """The first line of a request, empty at the end of a connection, and its headers."""
    line, headers = f.readline().decode('latin1').strip(), {}
    for header in iter(f.readline if line else bytes, b'\r\n' if line else b''):
        name, _, value = header.decode('latin1').partition(':')
        headers[name.lower()] = value.strip()
    return line, headers


def response(status, *headers):
    lines = ['HTTP/1.1 %d X' % status, 'Content-Length: 1', *headers]
    return '\r\n'.join(lines).encode() + b'\r\n\r\nx'
