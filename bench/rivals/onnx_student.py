"""Students as ONNX graphs, answered by ONNX Runtime. N rows, E experts, K chosen, D in, F out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from gmoe_ext.models import MLP, RbM

Form = Literal["gather", "dense"]
EPS = 1e-12
OPSET = 17


class Nodes:
    """A chain of ONNX nodes; calling adds one and gives the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        from onnx import helper

        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """A constant by value."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def session(self, last: str, in_dim: int, out_dim: int, threads: int) -> Callable[[np.ndarray], np.ndarray]:
        """The chain as a function of rows [N, in_dim]."""
        import onnxruntime
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self.nodes,
            "student",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", in_dim])],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", out_dim])],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda rows: session.run([last], {"x": rows})[0]


@torch.no_grad()
def rbm(model: RbM, form: Form, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """RbM with attention and scale folded into the experts.

    "gather" takes the chosen experts' matrices for each row, which suits one row; "dense" runs all experts on all
    rows and masks, which suits a batch. Norms between the layers are not supported: build the model without.
    ModuleNotFoundError where onnx or onnxruntime is not installed.
    """
    chain, h = Nodes(), "x"
    layers = model.expert_layers()
    for place, layer in enumerate(layers):
        memory_ED = torch.nn.functional.normalize(layer.router.memory, dim=1)
        norm_N1 = chain("ReduceL2", h, axes=[1], keepdims=1)
        unit_ND = chain("Div", h, chain("Max", norm_N1, chain.constant([EPS])))
        cosine_NE = chain("MatMul", unit_ND, chain.constant(memory_ED.T.numpy()))
        top_NK, index_NK = chain("TopK", cosine_NE, chain.constant([layer.k], np.int64), outputs=2)
        gate_NK = chain("Softmax", top_NK, axis=1)
        scale = layer.input_scale()
        weight_EFD = layer.experts.weight if scale is None else layer.experts.weight * scale[:, None, :]
        weight_EFD, bias_EF = weight_EFD * layer.output_scale(), layer.experts.bias * layer.output_scale()
        mix = _gather if form == "gather" else _dense
        h = mix(chain, h, cosine_NE, gate_NK, index_NK, weight_EFD.numpy(), bias_EF.numpy())
        if place < len(layers) - 1:
            h = chain("Relu", h)
    experts = [layer.experts for layer in layers]
    return chain.session(h, experts[0].in_dim, experts[-1].out_dim, threads)


def _gather(
    chain: Nodes, h: str, _cosine: str, gate_NK: str, index_NK: str, weight_EFD: np.ndarray, bias_EF: np.ndarray
) -> str:
    chosen_NKFD = chain("Gather", chain.constant(weight_EFD), index_NK, axis=0)
    column_N1D1 = chain("Unsqueeze", h, chain.constant([1, 3], np.int64))
    y_NKF = chain("Squeeze", chain("MatMul", chosen_NKFD, column_N1D1), chain.constant([3], np.int64))
    y_NKF = chain("Add", y_NKF, chain("Gather", chain.constant(bias_EF), index_NK, axis=0))
    row_N1K = chain("Unsqueeze", gate_NK, chain.constant([1], np.int64))
    return chain("Squeeze", chain("MatMul", row_N1K, y_NKF), chain.constant([1], np.int64))


def _dense(
    chain: Nodes, h: str, cosine_NE: str, gate_NK: str, index_NK: str, weight_EFD: np.ndarray, bias_EF: np.ndarray
) -> str:
    experts, out_dim, in_dim = weight_EFD.shape
    wide = chain("MatMul", h, chain.constant(weight_EFD.reshape(experts * out_dim, in_dim).T))
    wide = chain("Add", wide, chain.constant(bias_EF.reshape(-1)))
    y_NEF = chain("Reshape", wide, chain.constant([-1, experts, out_dim], np.int64))
    zero_NE = chain("Mul", cosine_NE, chain.constant([0.0]))
    gates_NE = chain("ScatterElements", zero_NE, index_NK, gate_NK, axis=1)
    row_N1E = chain("Unsqueeze", gates_NE, chain.constant([1], np.int64))
    return chain("Squeeze", chain("MatMul", row_N1E, y_NEF), chain.constant([1], np.int64))


@torch.no_grad()
def mlp(model: MLP, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A plain MLP of linear layers and ReLU. ModuleNotFoundError where onnx or onnxruntime is not installed."""
    chain, h = Nodes(), "x"
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for place, layer in enumerate(layers):
        h = chain("Gemm", h, chain.constant(layer.weight.numpy()), chain.constant(layer.bias.numpy()), transB=1)
        if place < len(layers) - 1:
            h = chain("Relu", h)
    return chain.session(h, layers[0].in_features, layers[-1].out_features, threads)
