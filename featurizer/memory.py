"""What a kernel asks of memory beyond reading and writing numbers: hints, and moves of many.

What is read lies scattered over memory, and a line of it that is in no cache takes 0.1 µs and more;
lines that were asked for together come together. A hint changes no result. An assignment of one
slice to another becomes a loop over single numbers, which takes two to eight times as long as the
C library's move.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE_WORDS = 8  # of a cache line, 64 bytes
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


def _move(_: Any, to: Any, to_at: Any, of: Any, of_at: Any, count: Any) -> tuple[Any, Any] | None:
    """Copy ``of[of_at : of_at + count]`` to ``to[to_at :]``; the two may overlap.

    Arrays of one dimension without gaps, and of one type. Nothing is checked.
    """
    if not all(isinstance(each, types.Integer) for each in (to_at, of_at, count)):
        return None
    insert: Any = cgutils.get_or_insert_function

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2)
        )
        text, word, flag = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(1)
        kind = ir.FunctionType(ir.VoidType(), [text, text, word, flag])
        copy = insert(builder.module, kind, "llvm.memmove.p0i8.p0i8.i64")
        width = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
        size = builder.mul(arguments[4], ir.Constant(word, width))
        first, last = (
            builder.bitcast(builder.gep(array.data, [at]), text)
            for array, at in ((target, arguments[1]), (source, arguments[3]))
        )
        builder.call(copy, [first, last, size, ir.Constant(flag, 0)])
        return context.get_dummy_value()

    return types.void(to, types.int64, of, types.int64, types.int64), generate


move: Any = intrinsic(_move)
