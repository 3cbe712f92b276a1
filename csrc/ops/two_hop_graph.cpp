#include "ops/two_hop_graph.h"

namespace gmoe::ops {

void check_two_hop_graph(const Tensor& offsets, const Tensor& columns, const OptionalTensor& edge_type,
                         std::int64_t num_edge_types) {
  constexpr const char* op = "gmoe::two_hop_graph";
  check_rows(op, offsets, columns);
  if (!edge_type.has_value()) return;
  check_edge_type(op, *edge_type, columns);
  // Both hops' types make one index of the columns' width.
  const bool wide = columns.scalar_type() == ScalarType::Long;
  const std::int64_t most = wide ? 3037000499 : 46340;
  check(num_edge_types >= 0 && num_edge_types <= most, op, ": expected 'num_edge_types' in [0, ", most, "], got ",
        num_edge_types);
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "two_hop_graph(Tensor offsets, Tensor columns, Tensor? edge_type, int num_edge_types, bool exclude_self, "
      "bool exclude_one_hop) -> (Tensor offsets, Tensor columns, Tensor edge_type)");
}
