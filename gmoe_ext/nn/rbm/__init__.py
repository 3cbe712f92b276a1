"""RbM (Routing by Memory): graph-free layers of linear experts, routed by memory or by a learned projection."""
