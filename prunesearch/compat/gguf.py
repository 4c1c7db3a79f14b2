"""Private parts of gguf: how its reader takes texts and numbers out of the file.

Tested with gguf 0.19 (the tests compare the result with the reader's own).
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np

_STRING, _ARRAY = 8, 9


class QuickReader(gguf.GGUFReader):  # type: ignore[misc]  # gguf has no types
    """A `gguf.GGUFReader` that reads long lists of texts 20 times as fast, with the same result.

    A vocabulary has several hundred thousand texts. The reader's own code takes each of them, and
    each of their lengths, out of the memory map by several operations of numpy. If a later version
    of gguf calls other methods, these ones are not used, and reading is slow but correct.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:  # noqa: ANN401 (as in gguf)
        is_list = int(raw_type) == _ARRAY
        if not is_list or int(self._get(orig_offs, np.uint32)[0]) != _STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        # The list begins with the type of its entries and their number.
        kind_1, count_1 = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        parts = [kind_1, count_1]
        places: list[int] = []
        # An ordinary array is sliced much faster than a memory map. Both are the same memory.
        data_B = np.asarray(self.data)
        at = orig_offs + 12
        number = np.dtype(np.uint64).newbyteorder(self.byte_order)
        length_of = struct.Struct("<Q" if number.newbyteorder("<") == number else ">Q").unpack_from
        for place in range(int(count_1[0])):
            (length,) = length_of(data_B.data, at)
            parts.append(data_B[at : at + 8].view(number))
            parts.append(data_B[at + 8 : at + 8 + length])
            places.append(2 * place + 3)
            at += 8 + length
        types = [gguf.GGUFValueType.ARRAY]
        if places:
            types.append(gguf.GGUFValueType.STRING)
        return at - orig_offs, parts, places, types


@contextmanager
def quick_reader() -> Iterator[None]:
    """Let transformers read GGUF files with `QuickReader` inside the ``with`` block.

    transformers reads the header of a file for the config, for the tokenizer and for the model, and
    takes the reader from the module `gguf` each time.
    """
    own = gguf.GGUFReader
    gguf.GGUFReader = QuickReader
    try:
        yield
    finally:
        gguf.GGUFReader = own
