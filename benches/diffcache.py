"""libdiffcache for eager.py: structs, constants and functions by ctypes, read from include/diffcache.h so that they cannot
differ from it. Not a binding to be shipped.

    dc = Library("target/release/libdiffcache.so")
    engine = dc.dc_engine_t()
    dc.check(dc.dc_engine_init(engine, ctypes.sizeof(engine)))
    engine.hooks = dc.DC_HOOK_EACH
"""

import ctypes
import re
from pathlib import Path

HEADER = Path(__file__).resolve().parent.parent / "include" / "diffcache.h"
SCALARS = {
    **{name: getattr(ctypes, f"c_{name}") for name in ("char", "float", "double", "size_t")},
    **{f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}") for sign in ("", "u") for bits in (8, 32, 64)},
}
DECLARATION = re.compile(r"(?:const )?(\w+) (\**)(\w+)((?:\[\w+\])*)$")


class Library:
    def __init__(self, path):
        code = re.sub(r"//.*", "", HEADER.read_text())
        self._types = dict(SCALARS)
        self._read_constants(code)
        self._read_types(code)
        self._read_functions(code, ctypes.CDLL(str(path)))

    def check(self, status):
        if status < 0:
            raise RuntimeError(self.dc_last_error().decode())

    def _read_constants(self, code):
        numbers = re.findall(r"#define (DC_\w+) \(?(\w+)\)?$", code, re.MULTILINE)
        for body in re.findall(r"typedef enum \w+ \{(.*?)\}", code, re.DOTALL):
            last = -1
            for name, value in re.findall(r"(DC_\w+)(?: = (-?\d+))?,", body):
                last = int(value) if value else last + 1
                numbers.append((name, str(last)))
        for name, value in numbers:
            if re.fullmatch(r"-?\d+", value):
                setattr(self, name, int(value))

    def _read_types(self, code):
        for kind, body, name in re.findall(r"typedef (struct \w+ \{(.*?)\}|\w+) (\w+);", code, re.DOTALL):
            if kind in self._types:
                self._types[name] = self._types[kind]
            elif body:
                fields = [self._field(line) for line in body.split(";") if line.strip()]
                self._types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
                setattr(self, name, self._types[name])

    def _field(self, line):
        line = " ".join(line.split())
        callback = re.search(r"\(\*(\w+)\)", line)
        return (callback[1], ctypes.c_void_p) if callback else self._declared(line)

    def _declared(self, text):
        """Name and type. Pointers to what this library does not show, or to nothing in particular, are addresses."""
        base, stars, name, extents = DECLARATION.match(text).groups()
        if base == "char" and stars:
            return name, ctypes.c_char_p
        known = self._types.get(base)
        for _ in stars[0 if known else 1 :]:
            known = ctypes.POINTER(known or ctypes.c_void_p)
        known = known or ctypes.c_void_p
        for extent in reversed(re.findall(r"\w+", extents)):
            known *= int(extent) if extent.isdigit() else getattr(self, extent)
        return name, known

    def _read_functions(self, code, library):
        for result, name, parameters in re.findall(r"DC_API (?:DC_NODISCARD )?([^;(]*?)(\w+)\(([^)]*)\);", code):
            function = getattr(library, name)
            result = " ".join(result.split())
            function.restype = None if result == "void" else self._declared(f"{result} _".replace("* _", "*_"))[1]
            parameters = [" ".join(p.split()) for p in parameters.split(",") if p.strip() != "void"]
            function.argtypes = [self._declared(p)[1] for p in parameters]
            setattr(self, name, function)
