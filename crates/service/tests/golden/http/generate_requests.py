"""Writes requests.tsv: what a running Swift object server (2.38.3, eventlet 0.41) answers to odd requests.

    python generate_requests.py DIRECTORY PORT

The server runs with `client_timeout = 3`, one device `sda`, policy 0, and no other filters. Each line: a name, the request
(with escapes, and `<text*count>` for repetition), the statuses that came back, and whether the connection was `closed` or
left `open` after half a second of silence.
"""
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

P = "/sda/0/a/c/o"
PUT = "X-Timestamp: 1\\r\\nContent-Type: t\\r\\n"
AGAIN = "GET " + P + " HTTP/1.1\\r\\n\\r\\n"

REQUESTS = [
    ("plain", AGAIN),
    ("bare newlines", "GET " + P + " HTTP/1.1\\nHost: h\\n\\n"),
    ("http/1.0", "GET " + P + " HTTP/1.0\\r\\n\\r\\n"),
    ("http/1.0 keep-alive", "GET " + P + " HTTP/1.0\\r\\nConnection: Keep-Alive\\r\\n\\r\\n"),
    ("http/1.1 close", "GET " + P + " HTTP/1.1\\r\\nConnection: Close\\r\\n\\r\\n"),
    ("close in a list", "GET " + P + " HTTP/1.1\\r\\nConnection: foo, close\\r\\n\\r\\n"),
    ("http/1.2", "GET " + P + " HTTP/1.2\\r\\n\\r\\n"),
    ("http/1.10", "GET " + P + " HTTP/1.10\\r\\n\\r\\n"),
    ("http/01.1", "GET " + P + " HTTP/01.1\\r\\n\\r\\n"),
    ("http/2.0", "GET " + P + " HTTP/2.0\\r\\n\\r\\n"),
    ("http/2 preface", "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"),
    ("http/0.9", "GET " + P + "\\r\\n"),
    ("http/0.9 with its version", "GET " + P + " HTTP/0.9\\r\\n\\r\\n"),
    ("http/0.9 put", "PUT " + P + "\\r\\n"),
    ("version in lower case", "GET " + P + " http/1.1\\r\\n\\r\\n"),
    ("version without dot", "GET " + P + " HTTP/1\\r\\n\\r\\n"),
    ("version with two dots", "GET " + P + " HTTP/1.1.1\\r\\n\\r\\n"),
    ("version with a sign", "GET " + P + " HTTP/+1.1\\r\\n\\r\\n"),
    ("version of no number", "GET " + P + " HTTP/a.b\\r\\n\\r\\n"),
    ("empty first line", "\\r\\n" + AGAIN),
    ("one word", "GET\\r\\n\\r\\n"),
    ("four words", "GET " + P + " x HTTP/1.1\\r\\n\\r\\n"),
    ("four words, no version", "GET " + P + " x y\\r\\n\\r\\n"),
    ("two spaces", "GET  " + P + " HTTP/1.1\\r\\n\\r\\n"),
    ("space first", " GET " + P + " HTTP/1.1\\r\\n\\r\\n"),
    ("space last", "GET " + P + " HTTP/1.1 \\r\\n\\r\\n"),
    ("tab for space", "GET\\t" + P + "\\tHTTP/1.1\\r\\n\\r\\n"),
    ("unknown method", "FROB " + P + " HTTP/1.1\\r\\n\\r\\n"),
    ("method in lower case", "get " + P + " HTTP/1.1\\r\\n\\r\\n"),
    ("method not ascii", "G\\xc3\\x89T " + P + " HTTP/1.1\\r\\n\\r\\n"),
    ("tls hello", "\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03\\r\\n"),
    ("nul in target", "GET " + P + "\\x00 HTTP/1.1\\r\\n\\r\\n"),
    ("tab in target", "GET " + P + "\\tx HTTP/1.1\\r\\n\\r\\n"),
    ("target latin-1", "GET " + P + "\\xe9 HTTP/1.1\\r\\n\\r\\n"),
    ("target utf-8", "GET " + P + "\\xc3\\xa9 HTTP/1.1\\r\\n\\r\\n"),
    ("target absolute", "GET http://host:80" + P + " HTTP/1.1\\r\\n\\r\\n"),
    ("target of another scheme", "GET ftp://host" + P + " HTTP/1.1\\r\\n\\r\\n"),
    ("target with bad escape", "GET " + P + "%zz HTTP/1.1\\r\\n\\r\\n"),
    ("line of 8191", "GET " + P + "<x*8164> HTTP/1.1\\r\\n\\r\\n"),
    ("line of 8192", "GET " + P + "<x*8165> HTTP/1.1\\r\\n\\r\\n"),
    ("endless line", "GET " + P + "<x*9000>"),
    ("header of 8191", "GET " + P + " HTTP/1.1\\r\\nX: <y*8186>\\r\\n\\r\\n"),
    ("header of 8192", "GET " + P + " HTTP/1.1\\r\\nX: <y*8187>\\r\\n\\r\\n"),
    ("endless header", "GET " + P + " HTTP/1.1\\r\\nX: <y*9000>"),
    ("headers of 60000", "GET " + P + " HTTP/1.1\\r\\n<X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\\r\\n*180>\\r\\n"),
    ("headers too large", "GET " + P + " HTTP/1.1\\r\\nA: <y*8000>\\r\\nB: <y*8000>\\r\\nC: <y*8000>\\r\\nD: <y*8000>\\r\\n"
     "E: <y*8000>\\r\\nF: <y*8000>\\r\\nG: <y*8000>\\r\\nH: <y*8000>\\r\\nI: <y*8000>\\r\\n\\r\\n"),
    ("200 headers", "GET " + P + " HTTP/1.1\\r\\n<X: y\\r\\n*200>\\r\\n"),
    ("201 headers", "GET " + P + " HTTP/1.1\\r\\n<X: y\\r\\n*201>\\r\\n"),
    ("folded header", "GET " + P + " HTTP/1.1\\r\\nX: y\\r\\n z\\r\\n\\r\\n"),
    ("space before colon", "GET " + P + " HTTP/1.1\\r\\nX : y\\r\\n\\r\\n"),
    ("space in name", "GET " + P + " HTTP/1.1\\r\\nX Y: z\\r\\n\\r\\n"),
    ("space before first name", "GET " + P + " HTTP/1.1\\r\\n X: z\\r\\n\\r\\n"),
    ("no colon", "GET " + P + " HTTP/1.1\\r\\nX\\r\\n\\r\\n"),
    ("no name", "GET " + P + " HTTP/1.1\\r\\n: x\\r\\n\\r\\n"),
    ("name not ascii", "GET " + P + " HTTP/1.1\\r\\nX-\\xc3\\xa9: x\\r\\n\\r\\n"),
    ("value not ascii", "GET " + P + " HTTP/1.1\\r\\nX: \\xc3\\xa9\\xff\\r\\n\\r\\n"),
    ("nul in value", "GET " + P + " HTTP/1.1\\r\\nX: a\\x00b\\r\\n\\r\\n"),
    ("return in value", "GET " + P + " HTTP/1.1\\r\\nX: a\\rb\\r\\n\\r\\n"),
    ("two hosts", "GET " + P + " HTTP/1.1\\r\\nHost: a\\r\\nHost: b\\r\\n\\r\\n"),
    ("no host", "GET " + P + " HTTP/1.1\\r\\n\\r\\n"),
    ("unknown expectation", "GET " + P + " HTTP/1.1\\r\\nExpect: x\\r\\n\\r\\n"),
    ("pipelined", AGAIN + AGAIN),
    ("get with a body", "GET " + P + " HTTP/1.1\\r\\nContent-Length: 3\\r\\n\\r\\nabc" + AGAIN),
    ("length empty", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "Content-Length: \\r\\n\\r\\n"),
    ("length negative", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "Content-Length: -1\\r\\n\\r\\n"),
    ("length with a sign", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "Content-Length: +3\\r\\n\\r\\nabc"),
    ("length with underscore", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "Content-Length: 0_3\\r\\n\\r\\nabc"),
    ("length hexadecimal", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "Content-Length: 0x3\\r\\n\\r\\nabc"),
    ("length twice the same", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "Content-Length: 3\\r\\nContent-Length: 3\\r\\n\\r\\nabc"),
    ("lengths differ", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "Content-Length: 3\\r\\nContent-Length: 4\\r\\n\\r\\nabc"),
    ("length list", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "Content-Length: 3, 3\\r\\n\\r\\nabc"),
    ("no length", "PUT " + P + "1 HTTP/1.1\\r\\n" + PUT + "\\r\\n"),
    ("put", "PUT " + P + "2 HTTP/1.1\\r\\n" + PUT + "Content-Length: 3\\r\\n\\r\\nabc" + AGAIN),
    ("chunked", "PUT " + P + "3 HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: chunked\\r\\n\\r\\n3\\r\\nabc\\r\\n0\\r\\n\\r\\n" + AGAIN),
    ("chunked in capitals", "PUT " + P + "4 HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: CHUNKED\\r\\n\\r\\n0\\r\\n\\r\\n"),
    ("chunked and length", "PUT " + P + "5 HTTP/1.1\\r\\n" + PUT
     + "Content-Length: 3\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n3\\r\\nabc\\r\\n0\\r\\n\\r\\n" + AGAIN),
    ("gzip, chunked", "PUT " + P + "6 HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: gzip, chunked\\r\\n\\r\\n"),
    ("gzip", "PUT " + P + "6 HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: gzip\\r\\n\\r\\n"),
    ("chunked twice", "PUT " + P + "6 HTTP/1.1\\r\\n" + PUT
     + "Transfer-Encoding: chunked\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n"),
    ("coding with vertical tab", "PUT " + P + "6 HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: \\x0bchunked\\r\\n\\r\\n"),
    ("chunk extension", "PUT " + P + "7 HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: chunked\\r\\n\\r\\n3;a=b\\r\\nabc\\r\\n0\\r\\n\\r\\n"),
    ("trailers", "PUT " + P + "8 HTTP/1.1\\r\\n" + PUT
     + "Transfer-Encoding: chunked\\r\\n\\r\\n3\\r\\nabc\\r\\n0\\r\\nX: y\\r\\n\\r\\n" + AGAIN),
    ("chunk size of no number", "PUT " + P + "9 HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: chunked\\r\\n\\r\\nxyz\\r\\nabc\\r\\n0\\r\\n\\r\\n"),
    ("chunk size with 0x", "PUT " + P + "9a HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: chunked\\r\\n\\r\\n0x3\\r\\nabc\\r\\n0\\r\\n\\r\\n"),
    ("chunk size negative", "PUT " + P + "9b HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: chunked\\r\\n\\r\\n-3\\r\\nabc\\r\\n0\\r\\n\\r\\n"),
    ("chunk longer than said", "PUT " + P + "9c HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: chunked\\r\\n\\r\\n3\\r\\nabcd\\r\\n0\\r\\n\\r\\n"),
    ("chunk with bare newlines", "PUT " + P + "9d HTTP/1.1\\r\\n" + PUT + "Transfer-Encoding: chunked\\r\\n\\r\\n3\\nabc\\n0\\n\\n"),
    ("expect", "PUT " + P + "10 HTTP/1.1\\r\\n" + PUT + "Content-Length: 3\\r\\nExpect: 100-continue\\r\\n\\r\\nabc"),
    ("expect, refused", "PUT " + P + "11 HTTP/1.1\\r\\nContent-Length: 3\\r\\nExpect: 100-continue\\r\\n\\r\\n"),
    ("refused", "PUT " + P + "12 HTTP/1.1\\r\\nContent-Length: 3\\r\\n\\r\\nabc" + AGAIN),
    ("stalled body", "PUT " + P + "13 HTTP/1.1\\r\\n" + PUT + "Content-Length: 3\\r\\n\\r\\nab"),
    ("underscore in name", "PUT " + P + "14 HTTP/1.1\\r\\nX_Timestamp: 1\\r\\nContent-Type: t\\r\\nContent-Length: 0\\r\\n\\r\\n"),
]


def expand(text):
    text = re.sub(r"<([^*>]+)\*(\d+)>", lambda m: m[1] * int(m[2]), text)
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


def statuses(data):
    found = []
    while data.startswith(b"HTTP/1."):
        head, _, data = data.partition(b"\r\n\r\n")
        found.append(head.split()[1].decode())
        length = re.search(rb"(?i)content-length: (\d+)", head)
        data = data[int(length[1]) if length else 0:]
    return " ".join(found) or ("?" if data else "-")


def ask(item):
    name, text = item
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    data, end = b"", "open"
    try:
        sock.sendall(expand(text))
        sock.settimeout(3.6)
        while True:
            piece = sock.recv(65536)
            sock.settimeout(0.5)
            if not piece:
                end = "closed"
                break
            data += piece
    except socket.timeout:
        pass
    except ConnectionError:
        end = "closed"
    return "%s\t%s\t%s\t%s\n" % (name, text, statuses(data), end)


with ThreadPoolExecutor(16) as pool, open("%s/requests.tsv" % sys.argv[1], "w") as out:
    out.writelines(pool.map(ask, REQUESTS))
