"""Writes ranges.tsv and conditional.tsv: what swift.common.swob (2.38.3) makes of Range and conditional headers.

    python generate.py DIRECTORY
"""
import random
import sys

from swift.common import swob

BOUNDARY = b"0123456789abcdef0123456789abcdef"
BODY = b"0123456789abcdefghij"
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def range_values():
    yield from [
        "bytes=0-0", "bytes=0-", "bytes=-1", "bytes=-0", "bytes=5-3", "bytes=-", "bytes=45", "bytes=a-b", "bytes=1-b",
        "bytes=a-1", "bytes=--1", "bytes=-1-2", "bytes=1-2-3", "bytes=", "bytes", "", "byte=0-1", "BYTES=0-1",
        " bytes = 0 - 1 ", "bytes=0-1,", "bytes=,0-1", "bytes=0-1,,2-3", "bytes=+1-2", "bytes=1-+2", "bytes=1_0-20",
        "bytes=_1-2", "bytes=1__0-20", "bytes=1-1_0", "bytes=99999999999999999999999-", "bytes=0-99999999999999999999999",
        "bytes=-99999999999999999999999", "bytes=0-1,2-3", "bytes=2-3,0-1", "bytes=0-5,1-6,2-7", "bytes=0-5,1-6,2-7,3-8",
        "bytes=0-5,0-5,0-5,0-5", "bytes=0-1;2-3", "items=0-1", "bytes=0x1-2", "bytes=1.0-2", "bytes=1-2 3",
        "bytes=" + ",".join("%d-%d" % (i, i) for i in range(50)), "bytes=" + ",".join("%d-%d" % (i, i) for i in range(51)),
        "bytes=" + ",".join("%d-%d" % (i, i) for i in range(7, 0, -1)),
        "bytes=" + ",".join("%d-%d" % (i, i) for i in range(8, 0, -1)),
    ]
    rng = random.Random(1)
    for _ in range(300):
        specs = []
        for _ in range(rng.choice([1, 1, 2, 3, 4, 8, 9])):
            first, last = rng.randrange(40), rng.randrange(40)
            specs.append(rng.choice(["%d-%d" % (min(first, last), max(first, last)), "%d-" % first, "-%d" % last,
                                     "%d-%d" % (first, last)]))
        yield "bytes=" + ",".join(specs)


def ranges():
    for value in range_values():
        for length in (0, 1, 20, 100):
            try:
                found = swob.Range(value).ranges_for_length(length)
                shown = " ".join("%d-%d" % pair for pair in found)
            except ValueError:
                shown = "ignored"
            yield "%s\t%d\t%s" % (value, length, shown)


def full(path, req):
    if path == "/404":
        return swob.Response(status=404, request=req, conditional_response=True)
    if path == "/empty":
        return swob.Response(body=b"", request=req, conditional_response=True, headers={"Etag": '"e"'})
    headers = {"Etag": '"abc"', "Last-Modified": DATE, "Content-Type": "text/x"}
    return swob.Response(body=BODY, request=req, conditional_response=True, headers=headers)


def conditional():
    before, after = "Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"
    sets = [{}]
    for value in ["abc", '"abc"', '"xyz"', "*", '"xyz", "abc"', "xyz , abc,", 'W/"abc"', '""', "", '"', ","]:
        sets += [{"If-Match": value}, {"If-None-Match": value}]
    for value in [before, DATE, after, "junk"]:
        sets += [{"If-Modified-Since": value}, {"If-Unmodified-Since": value}]
    for value in ["bytes=0-3", "bytes=5-", "bytes=-4", "bytes=30-", "bytes=0-3,6-8", "bytes=0-0,19-", "bytes=junk",
                  "bytes=0-99", "bytes=-99", "bytes=-0"]:
        sets += [{"Range": value}, {"Range": value, "If-None-Match": "abc"}, {"Range": value, "If-Range": "xyz"}]
    sets += [{"If-None-Match": "xyz", "If-Modified-Since": after}, {"If-Match": "abc", "If-Unmodified-Since": before},
             {"If-None-Match": "abc", "If-Match": "xyz"}, {"If-Modified-Since": after, "If-Unmodified-Since": before}]
    for headers in sets:
        for path in ("/o", "/404", "/empty"):
            for method in ("GET", "HEAD"):
                req = swob.Request.blank(path, method=method, headers=headers)
                resp = full(path, req)
                resp.boundary = BOUNDARY
                shown = {}

                def start_response(status, sent):
                    shown.update(sent, status=status.split()[0])
                body = b"".join(resp(req.environ, start_response))
                if method == "GET":
                    # The server adds it to a response that is a list.
                    shown.setdefault("Content-Length", str(len(body)))
                fields = [shown.get(name, "-") for name in ("status", "Content-Type", "Content-Length", "Content-Range")]
                fields.append(body.decode().replace("\r\n", "~"))
                yield "%s\t%s\t%s\t%s" % (method, path, "|".join("%s: %s" % h for h in headers.items()), "|".join(fields))


for name, lines in (("ranges", ranges()), ("conditional", conditional())):
    with open("%s/%s.tsv" % (sys.argv[1], name), "w") as out:
        out.writelines(line + "\n" for line in lines)
