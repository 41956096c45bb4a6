"""eqjax.analytic"""

from ._functions import (
    attention as attention,
    causal_mask as causal_mask,
    cross_entropy as cross_entropy,
    gelu as gelu,
    heads as heads,
    layer_norm as layer_norm,
    logsumexp as logsumexp,
    matmul as matmul,
    rms_norm as rms_norm,
    scale as scale,
    shift as shift,
    softmax as softmax,
    softplus as softplus,
    squared_error as squared_error,
    tree_cast as tree_cast,
    tree_held as tree_held,
    tree_where as tree_where,
    unheads as unheads,
)
