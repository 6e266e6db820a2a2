"""A hint to the processor: that memory will be read soon, so that kernels need not wait for it.

What is read lies scattered over memory, and a line of it that is in no cache takes 0.1 µs and more;
lines that were asked for together come together. A hint changes no result.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_READ, _KEEP, _DATA = 0, 3, 1  # https://llvm.org/docs/LangRef.html#llvm-prefetch-intrinsic


def _prefetch(_: Any, words: Any, at: Any) -> tuple[Any, Any]:
    """Ask for the cache line of ``words[at]``, an array of one dimension; ``at`` is unchecked."""
    insert: Any = cgutils.get_or_insert_function

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        number, text = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [text, number, number, number])
        hint = insert(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.bitcast(builder.gep(array.data, [arguments[1]]), text)
        builder.call(hint, [address, *(ir.Constant(number, n) for n in (_READ, _KEEP, _DATA))])
        return context.get_dummy_value()

    return types.void(words, at), generate


prefetch: Any = intrinsic(_prefetch)
