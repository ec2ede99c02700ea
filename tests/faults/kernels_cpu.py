"""Faults in the CPU kernels."""

from __future__ import annotations

from fault import Fault

SIMILARITY, ROWS, SORTING = "csrc/cpu/similarity/", "csrc/cpu/rows/", "csrc/cpu/sorting/"
NUMBERS = "registry/test_numbers.py registry/test_gradients.py registry/test_layout.py -k "


def similarity(kind: str, file: str, where: str, old: str, new: str) -> Fault:
    primitive = "topk" if file == "select.h" else "logsumexp"
    tests = f"{NUMBERS} 'similarity_{primitive} or only_queries or probabilities'"
    return Fault(kind, SIMILARITY + file, where, old, new, tests)


def rows(primitive: str, kind: str, file: str, where: str, old: str, new: str) -> Fault:
    return Fault(kind, file, where, old, new, f"{NUMBERS} '{primitive}'")


FAULTS = (
    similarity(
        "id compare swapped",
        "tiles.h",
        "return {};",
        "load_ids<T>(o.key_ids + key) == o.row_ids[row]",
        "load_ids<T>(o.key_ids + key) != o.row_ids[row]",
    ),
    similarity(
        "mask of excluded pairs missing",
        "forward.h",
        "if constexpr (kIds) e = {};",
        "zero_where<T>(excluded(o, row, j0 + j + v * kLanes<T>), e)",
        "e",
    ),
    similarity(
        "operand forgotten (bias)",
        "forward.h",
        "Vec<T> e = exp<T>(logits(o, row, s.acc[r][v]) + {});",
        "offset[v] + o.row_offset[row]",
        "offset[v] * T(0) + o.row_offset[row]",
    ),
    similarity(
        "edge off by one (last key of a block)",
        "forward.h",
        "for (int64_t j = 0; j < {}; ++j) sums.col[j0 + j] += scratch.key_acc[j];",
        "keys",
        "keys - 1",
    ),
    similarity(
        "edge off by one (last row of a block)",
        "forward.h",
        "for (int64_t i = 0; i < {}; ++i)\n    sums.row[i0 + i]",
        "rows",
        "rows - 1",
    ),
    similarity(
        "accumulator of the last block is stale",
        "forward.h",
        "for (int64_t n = 0; n < stride; ++n) scratch.key_acc[n] = {};",
        "T(0)",
        "(I ? scratch.key_acc[n] : T(0))",
    ),
    similarity(
        "wrong sign in a gradient",
        "backward.h",
        "if constexpr (kMode == Exponentials::kShared) y = y * {};",
        "(load(w.key + key) + w.row[row])",
        "(load(w.key + key) - w.row[row])",
    ),
    similarity(
        "wrong sign where exponentials are cached",
        "backward.h",
        "                      {};",
        "(load(w.key + area.column + at) + w.row[area.row + i + r])",
        "(load(w.key + area.column + at) - w.row[area.row + i + r])",
    ),
    similarity(
        "diagonal block counted twice",
        "backward.h",
        "if (to_keys && {}) to_keys.add",
        "!(symmetric && I == J)",
        "true",
    ),
    similarity(
        "first scale for every row",
        "backward.h",
        "const T weight = p.drows[i] * {};",
        "p.scale[p.row_scale ? i : 0]",
        "p.scale[0]",
    ),
    similarity(
        "incoming gradient forgotten",
        "backward.h",
        "dots[i] = p.dscale ? {} : 0;",
        "exact_dot(p.q, i, p.features, mean) * p.drows[i]",
        "exact_dot(p.q, i, p.features, mean)",
    ),
    similarity(
        "rounding of a sum left in its row",
        "backward.h",
        "shift - lse[i] - rest : {};",
        "-rest",
        "0 * rest",
    ),
    similarity(
        "order depends on threads",
        "tiles.h",
        "for (int spins = 0; {};) {",
        "__atomic_load_n(done_ + block, __ATOMIC_ACQUIRE) != turn",
        "false",
    ),
    similarity(
        "edge off by one (padding taken as a key)",
        "select.h",
        "if (r >= o.rows || {}) continue;",
        "c >= o.keys",
        "c > o.keys",
    ),
    similarity(
        "mask of excluded pairs missing (top k)",
        "select.h",
        "if ({}) continue;\n        take",
        "kIds && o.row_ids[r] == o.key_ids[c]",
        "false",
    ),
    similarity(
        "ties in the wrong order",
        "select.h",
        "(int(x == y) & {}));",
        "int(i > j)",
        "int(i < j)",
    ),
    similarity(
        "part of the work left out",
        "select.h",
        "for (int64_t part = 1; part < {}; ++part) {\n      const Heap<T> other",
        "parts_",
        "parts_ - 1",
    ),
    rows(
        "l2_normalize",
        "wrong sign in a gradient (rows)",
        "csrc/include/sslfast/rows/l2_normalize.h",
        "return {} * inverse; }",
        "(dy - y * along)",
        "(dy + y * along)",
    ),
    rows(
        "l2_normalize",
        "limit of the divisor ignored",
        "csrc/include/sslfast/rows/l2_normalize.h",
        "clamped = {};",
        "norm < least",
        "norm < A(0)",
    ),
    rows(
        "l2_normalize",
        "output not written (norm of the last row)",
        ROWS + "l2_normalize.kernel.cpp",
        "p.norm[{}] = norm;",
        "i",
        "i + 1 < p.rows ? i : 0",
    ),
    rows(
        "standardize",
        "degrees of freedom ignored",
        ROWS + "standardize.kernel.cpp",
        "s.p.variance[s.first + d] = T(moments.square[d] / {});",
        "double(s.p.rows - s.p.ddof)",
        "double(s.p.rows)",
    ),
    rows(
        "standardize",
        "sum overwritten instead of added to",
        ROWS + "standardize.kernel.cpp",
        "sums.dy[d] += {};",
        "total",
        "total - sums.dy[d]",
    ),
    rows(
        "standardize",
        "digits of the mean lost",
        ROWS + "standardize.kernel.cpp",
        "return {}; }",
        "(x - mean[d]) - rest[d]",
        "x - mean[d]",
    ),
    rows(
        "standardize",
        "option ignored in the gradient",
        ROWS + "standardize.kernel.cpp",
        "return deviation == 0 ? 0 : {};",
        "(deviation + p.eps) / deviation",
        "1.0",
    ),
    rows(
        "sorting_group_mass",
        "edge off by one (group)",
        SORTING + "network.kernel.cpp",
        "v[i] = broadcast(T(i >= p_.bounds[group] && {}));",
        "i < p_.bounds[group + 1]",
        "i <= p_.bounds[group + 1]",
    ),
    rows(
        "sorting_group_mass",
        "option of another",
        SORTING + "network.kernel.cpp",
        "const Rule taught{T({}), T(p_.art_lambda)};",
        "p_.teacher_steepness",
        "p_.steepness",
    ),
    rows(
        "sorting_group_mass",
        "wrong sign of one term's gradient",
        SORTING + "network.kernel.cpp",
        "v_[i] = {};",
        "complement ? cotangent : -cotangent",
        "-cotangent",
    ),
    rows(
        "relaxed_sort",
        "scratch memory read before it is written",
        SORTING + "network.kernel.cpp",
        "if ({})\n      for (int s = 0; s < p_.swaps; ++s) dalpha_[s]",
        "!weights_learn",
        "false",
    ),
    rows(
        "isotonic_rank",
        "order not undone",
        SORTING + "isotonic.kernel.cpp",
        "{ out[{}] = T(value); });\n  });",
        "order[i]",
        "i",
    ),
    rows(
        "cross_frobenius",
        "mirrored tiles counted once",
        "csrc/cpu/correlation/cross_products.h",
        "f(tile) * ({}); });",
        "tile.mirrored ? 2 : 1",
        "1",
    ),
    rows(
        "cross_frobenius",
        "diagonal left in the sum",
        "csrc/cpu/correlation/cross_products.h",
        "out[i * width_ + j] = {};",
        "T(0)",
        "out[i * width_ + j]",
    ),
    rows(
        "cross_frobenius",
        "factor of the symmetric form forgotten",
        "csrc/cpu/correlation/cross_products.h",
        "factor_ = 2 * {} * p.dtotal;",
        "sides",
        "T(1)",
    ),
    rows(
        "cross_frobenius",
        "the other operand's product",
        "csrc/cpu/correlation/cross_products.h",
        "side({}, a_, b_, p.da);",
        "of_b",
        "of_a",
    ),
    rows(
        "l2_normalize or standardize or cross_frobenius or similarity_logsumexp",
        "half precision read as another type",
        "csrc/include/sslfast/elements.h",
        "uint32_t(x.bits) << {}); }",
        "16",
        "15",
    ),
)
