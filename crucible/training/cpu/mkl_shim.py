"""A shared library of one function, written byte by byte, so that no compiler is needed where training runs.

    int mkl_serv_intel_cpu_true(void) { return 1; }

oneMKL, which torch multiplies float32 matrices with, calls this function of its own to decide whether it may take its
code for Intel's processors; on an AMD one it says no, and matrix products run at down to half speed. The linker gives a
symbol to whoever defines it first, so loading this library before torch answers yes. oneMKL still asks the processor
which instructions it has.

Relies on that name, which oneMKL does not document; there is no public switch since MKL_DEBUG_CPU_TYPE went in 2020.
Checked with torch 2.13 for CPUs. `gemm` measures whether it helps before it is used, and where it is used
unmeasured, `require_use_by_torch` refuses a torch without that function.
"""

from __future__ import annotations

import ctypes
import os
import struct
from importlib.metadata import distribution

__all__ = ["load", "require_use_by_torch", "shared_library"]

SYMBOL = b"mkl_serv_intel_cpu_true"
_CODE = bytes.fromhex("f30f1efa b801000000 c3")  # endbr64; mov eax, 1; ret
_PAGE = 0x1000


def shared_library() -> bytes:
    """The library as an ELF file for x86-64 Linux: one page to read and run, one to write for the dynamic section."""
    strings = b"\0" + SYMBOL + b"\0"
    string_at = 64 + 4 * 56  # after the file header and four program headers
    hash_at = _align(string_at + len(strings))
    symbol_at = hash_at + 5 * 4 + 4
    code_at = symbol_at + 2 * 24
    # One bucket, a chain of two: the empty symbol every table starts with, and ours.
    hash_table = struct.pack("<5I", 1, 2, 1, 0, 0)
    # name, info (global function), other, section (any that is not "undefined"), value, size
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, 1, code_at, len(_CODE))
    entries = [(4, hash_at), (5, string_at), (6, symbol_at), (10, len(strings)), (11, 24), (0, 0)]
    dynamic = b"".join(struct.pack("<2Q", tag, value) for tag, value in entries)

    load, dynamic_segment, stack = 1, 2, 0x6474E551
    run, write = 5, 6
    text_size = code_at + len(_CODE)
    segments = [
        (load, run, 0, text_size, _PAGE),
        (load, write, _PAGE, len(dynamic), _PAGE),
        (dynamic_segment, write, _PAGE, len(dynamic), 8),
        (stack, write, 0, 0, 16),  # without this entry the loader asks for an executable stack
    ]
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<2HI3QI6H", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    for kind, flags, offset, size, alignment in segments:
        header += struct.pack("<2I6Q", kind, flags, offset, offset, offset, size, size, alignment)

    text = header + strings
    text = text.ljust(hash_at, b"\0") + hash_table
    text = text.ljust(symbol_at, b"\0") + symbols + _CODE
    return text.ljust(_PAGE, b"\0") + dynamic


def load() -> None:
    """Put the library into this process, before torch is imported; raises OSError where that is not allowed.

    It lies in memory: a home may be read-only, or mounted so that nothing in it can run.
    """
    file = os.memfd_create("mkl_shim.so")
    try:
        os.write(file, shared_library())
        ctypes.CDLL(f"/proc/self/fd/{file}", mode=ctypes.RTLD_GLOBAL)
    finally:
        os.close(file)


def require_use_by_torch() -> None:
    """Raise OSError unless torch's library has the function that this one replaces."""
    library = str(distribution("torch").locate_file("torch/lib/libtorch_cpu.so"))
    if not hasattr(ctypes.CDLL(library), SYMBOL.decode()):
        raise OSError(f"torch {distribution('torch').version} has no {SYMBOL.decode()}")


def _align(offset: int) -> int:
    return (offset + 7) // 8 * 8
