"""python minscoop.py -n 2 examples/mandelbrot.py

Work of uneven size: one call per row of a picture. No chunk size has to be chosen: rows go to whichever worker is free.
"""
import struct
import sys
import zlib

from minscoop import futures

WIDTH, HEIGHT, LIMIT = 600, 400, 100
LEFT, TOP, STEP = -2.25, 1.0, 2.0 / HEIGHT


def shade(point):
    """The grey of a point: black inside the set; outside, the brighter the longer the point takes to escape."""
    z = 0j
    for steps in range(LIMIT):
        z = z * z + point
        if z.real * z.real + z.imag * z.imag > 4:
            return round(255 * (steps / LIMIT) ** 0.5)
    return 0


def row(y):
    """One row of the picture, a byte per pixel."""
    return bytes(shade(complex(LEFT + x * STEP, TOP - y * STEP)) for x in range(WIDTH))


def write_png(path, width, height, rows):
    """Write rows of grey bytes as a PNG file."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey, not interlaced
    pixels = b"".join(b"\0" + line for line in rows)                # 0: no filter for this row
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                   + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "mandelbrot.png"
    write_png(path, WIDTH, HEIGHT, futures.map(row, range(HEIGHT)))
    print("wrote", path)
