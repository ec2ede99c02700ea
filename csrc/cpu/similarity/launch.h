// What the CPU launchers of the similarity primitives share: rows and ids, checked and handed over.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/launch.h"
#include "cpu/similarity/problem.h"

namespace sslfast {

using MaybeTensor = std::optional<Tensor>;

// Ids as wide as the kernel's lanes. int64 ids keep their order of equality: shifted to zero where
// their range fits, else replaced by their rank.
template <class Id>
struct Ids {
  std::vector<Id> rows, keys;
  bool given = false;

  Ids(const MaybeTensor& row_ids, const MaybeTensor& key_ids) {
    if (!row_ids) return;
    given = true;
    const int64_t *r = data<int64_t>(*row_ids), *k = key_ids ? data<int64_t>(*key_ids) : nullptr;
    const int64_t n = row_ids->numel(), m = k ? key_ids->numel() : 0;
    if constexpr (std::is_same_v<Id, int64_t>) {
      rows.assign(r, r + n);
      keys.assign(k, k + m);
    } else {
      int64_t least = INT64_MAX, most = INT64_MIN;
      for (int64_t i = 0; i < n; ++i) least = std::min(least, r[i]), most = std::max(most, r[i]);
      for (int64_t j = 0; j < m; ++j) least = std::min(least, k[j]), most = std::max(most, k[j]);
      if (n + m > 0 && uint64_t(most) - uint64_t(least) <= UINT32_MAX) {
        const auto shift = [=](int64_t id) { return Id(uint32_t(uint64_t(id) - uint64_t(least))); };
        std::transform(r, r + n, std::back_inserter(rows), shift);
        std::transform(k, k + m, std::back_inserter(keys), shift);
        return;
      }
      std::vector<int64_t> distinct(r, r + n);
      distinct.insert(distinct.end(), k, k + m);
      std::sort(distinct.begin(), distinct.end());
      distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
      const auto rank = [&](int64_t id) {
        return Id(std::lower_bound(distinct.begin(), distinct.end(), id) - distinct.begin());
      };
      std::transform(r, r + n, std::back_inserter(rows), rank);
      std::transform(k, k + m, std::back_inserter(keys), rank);
    }
  }
};

// Checks rows and ids; returns the dtype that the kernels add up in.
inline ScalarType check_rows(const Tensor& queries, const MaybeTensor& keys,
                             const MaybeTensor& query_ids, const MaybeTensor& key_ids) {
  const ScalarType dtype = queries.scalar_type();
  element_of(queries, "queries");
  STD_TORCH_CHECK(queries.dim() == 2, "queries must be (N, D)");
  check(queries, "queries", dtype);
  if (keys) {
    check(*keys, "keys", dtype);
    STD_TORCH_CHECK(keys->dim() == 2 && keys->size(1) == queries.size(1), "keys must be (M, D)");
  }
  const int64_t n = queries.size(0), m = keys ? keys->size(0) : n;
  STD_TORCH_CHECK(n > 0 && m > 0 && queries.size(1) > 0, "queries and keys may not be empty");
  if (query_ids) {
    check(*query_ids, "query_ids", ScalarType::Long);
    STD_TORCH_CHECK(query_ids->numel() == n, "query_ids must be (N)");
  }
  STD_TORCH_CHECK(key_ids.has_value() == (query_ids.has_value() && keys.has_value()),
                  "key_ids go with query_ids in the rectangular form");
  if (key_ids) {
    check(*key_ids, "key_ids", ScalarType::Long);
    STD_TORCH_CHECK(key_ids->numel() == m, "key_ids must be (M)");
  }
  return accumulator(queries);
}

template <class T>
void fill_rows(SimilarityProblem<T>& p, const Tensor& queries, const MaybeTensor& keys,
               const Ids<typename IdOf<T>::type>& ids, int float_terms, TorchWorkspace& workspace) {
  STD_TORCH_CHECK(float_terms >= 1 && float_terms <= 3, "float_terms must be 1, 2 or 3");
  p.rows = queries.size(0);
  p.keys = keys ? keys->size(0) : p.rows;
  p.features = queries.size(1);
  p.q = source_of(queries, "queries");
  if (keys) p.k = source_of(*keys, "keys");
  p.float_terms = float_terms;
  p.row_ids = ids.given ? ids.rows.data() : nullptr;
  p.key_ids = ids.given ? ids.keys.data() : nullptr;
  p.pool = torch_pool();
  p.workspace = workspace;
}

}  // namespace sslfast
