"""The PyTorch side of `peers.py`: the same block, torchdeq around it, and a compiled loop through time.

It needs no JAX, so that a fresh process can measure its memory.
"""

import dataclasses
import functools

import numpy as np
import torch
import torch._dynamo
import torch._functorch.config
import torchdeq
from torch.nn import functional as F
from torchdeq.solver import get_solver, register_solver

# Implicit backward passes walk one graph many times.
torch._functorch.config.donated_buffer = False
torch._dynamo.config.recompile_limit = 64
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


class LanguageModel(torch.nn.Module):
    """`equilibrium_lm` with a `ThickBlock`, from a dictionary of its arrays (see `peers_bench.weights`)."""

    def __init__(self, weights, device):
        super().__init__()
        self.device, self.heads = device, int(weights["heads"])
        self.leak, self.gain = float(weights["leak"]), float(weights["gain"])
        self.names = [name for name, array in weights.items() if array.ndim]
        for name in self.names:
            array = torch.tensor(weights[name], device=device)
            self.register_parameter(name, torch.nn.Parameter(array))

    def array(self, values):
        return torch.tensor(np.asarray(values), device=self.device)

    def encode(self, tokens):
        return F.embedding(tokens, self.tokens) + self.positions[: tokens.shape[1]]

    def force(self, z, x):
        """`F(z) = x - (1 + c) z + α Attn(LN₁ z) + MLP(LN₂ z)` of states `(B, T, C)`."""
        shape = (*z.shape[:2], self.heads, -1)
        width = z.shape[-1:]
        g = F.layer_norm(z, width, self.norm1_weight, self.norm1_bias, 1e-5)
        q, k, v = ((g @ w).view(shape).transpose(1, 2) for w in (self.query, self.key, self.value))
        q, k = (F.rms_norm(a, a.shape[-1:], eps=1e-5) for a in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended = mixed.transpose(1, 2).reshape(z.shape) @ self.output
        g = F.layer_norm(z, width, self.norm2_weight, self.norm2_bias, 1e-5)
        hidden = F.gelu(g @ self.up + self.up_bias, approximate="tanh")
        return (
            x - (1 + self.leak) * z + self.gain * attended + (hidden @ self.down + self.down_bias)
        )

    def advance(self, z, x, step):
        return z + step * self.force(z, x)

    def loss(self, z, targets):
        return F.cross_entropy((z @ self.head).flatten(0, 1), targets.flatten())

    def gradients(self, loss):
        return torch.autograd.grad(loss, [getattr(self, name) for name in self.names])

    def numpy(self, grads):
        return {n: g.detach().cpu().numpy() for n, g in zip(self.names, grads, strict=True)}

    @torch.no_grad()
    def residual(self, z, x):
        """The worst force residual of a batch."""
        size = z.flatten(1).norm(dim=1).clamp_min(1.0)
        return float((self.force(z, x).flatten(1).norm(dim=1) / size).max())

    def settled(self, tokens, targets, step, iterations):
        """Plain iteration of the state, then of the adjoint: slow, and independent of every library."""
        with torch.no_grad():
            x = self.encode(tokens)
            z = x
            for _ in range(iterations):
                z = self.advance(z, x, step)
        state = z.clone().requires_grad_()
        force = self.force(state, x)
        (pull,) = torch.autograd.grad(self.loss(state, targets), state)
        a = torch.zeros_like(pull)
        for _ in range(iterations):
            (product,) = torch.autograd.grad(force, state, a, retain_graph=True)
            a = a + step * (product + pull)
        work = (a * self.force(z, self.encode(tokens))).sum()
        return z, self.gradients(self.loss(z, targets) + work)


class Counted(torch.autograd.Function):
    """The identity, which notes each product with the Jacobian's transpose that passes through."""

    @staticmethod
    def forward(ctx, z, tally):
        ctx.tally = tally
        return z.view_as(z)

    @staticmethod
    def backward(ctx, grad):
        ctx.tally.append("product")
        return grad, None


@dataclasses.dataclass(frozen=True)
class DEQ:
    """Settings of torchdeq on the map `z + step · F(z)`, all that it lets one choose."""

    solver: str
    step: float = 0.5
    ridge: float = 1e-4
    f_tol: float = 1e-5
    b_tol: float = 1e-4
    b_ridge: float = 1e-4
    hook: bool = True
    compiled: bool = False
    max_iter: int = 96

    def __str__(self):
        ridge = f", ridge {self.ridge:.0e}/{self.b_ridge:.0e}" if self.solver == "anderson" else ""
        how = "compiled block" if self.compiled else "eager block"
        hook = "hook" if self.hook else "function"
        return f"step {self.step:g}{ridge}, tol {self.f_tol:.1e}/{self.b_tol:.1e}, {hook}, {how}"

    def build(self, model, advance=None):
        return DEQRun(model, self, advance)


class DEQRun:
    def __init__(self, model, settings, advance=None):
        self.model, self.settings, self.tally = model, settings, None
        compiled = advance or compiled_advance(model) if settings.compiled else None
        self.advance = compiled or model.advance
        self.step = torch.tensor(settings.step, device=model.device)
        backward = f"{settings.solver} with ridge {settings.b_ridge}"
        register_solver(
            backward, functools.partial(get_solver(settings.solver), lam=settings.b_ridge)
        )
        self.deq = torchdeq.get_deq(
            core="indexing",
            ift=True,
            hook_ift=settings.hook,
            f_solver=settings.solver,
            b_solver=backward,
            f_max_iter=settings.max_iter,
            b_max_iter=settings.max_iter,
            f_tol=settings.f_tol,
            b_tol=settings.b_tol,
            f_stop_mode="rel",
            b_stop_mode="rel",
        )

    def _solve(self, x):
        def function(z):
            if self.tally is None:
                return self.advance(z, x, self.step)
            self.tally.append("force")
            return Counted.apply(self.advance(z, x, self.step), self.tally)

        (*_, z), _ = self.deq(function, x.detach(), solver_kwargs={"lam": self.settings.ridge})
        return z

    @torch.no_grad()
    def forward(self, tokens, targets):
        self.deq.eval()
        return self._solve(self.model.encode(tokens))

    def gradient(self, tokens, targets):
        self.deq.train()
        z = self._solve(self.model.encode(tokens))
        return z.detach(), self.model.gradients(self.model.loss(z, targets))


@dataclasses.dataclass(frozen=True)
class Loop:
    """Backpropagation through `steps` Euler steps of `step`."""

    steps: int = 150
    step: float = 0.1
    compiled: bool = True

    def __str__(self):
        return (
            f"{self.steps} steps of {self.step:g}, {'compiled' if self.compiled else 'eager'} step"
        )

    def build(self, model, advance=None):
        return LoopRun(model, self, advance)


class LoopRun:
    def __init__(self, model, settings, advance=None):
        self.model, self.settings = model, settings
        compiled = advance or compiled_advance(model) if settings.compiled else None
        self.advance = compiled or model.advance
        self.step = torch.tensor(settings.step, device=model.device)
        self.tally = None

    def _run(self, tokens):
        x = self.model.encode(tokens)
        z = x
        for _ in range(self.settings.steps):
            z = self.advance(z, x, self.step)
            if self.tally is not None:
                self.tally.append("force")
                z = Counted.apply(z, self.tally)
        return z

    @torch.no_grad()
    def forward(self, tokens, targets):
        return self._run(tokens)

    def gradient(self, tokens, targets):
        z = self._run(tokens)
        return z.detach(), self.model.gradients(self.model.loss(z, targets))


def compiled_advance(model):
    return torch.compile(model.advance, dynamic=False)


def first_compilation(model, tokens):
    """The compiled step if `torch.compile` works here, and else None and the reason."""
    torch._dynamo.reset()
    advance = compiled_advance(model)
    step = torch.tensor(0.5, device=model.device)
    try:
        with torch.no_grad():
            advance(model.encode(tokens), model.encode(tokens), step)
        advance(model.encode(tokens), model.encode(tokens), step).sum().backward()
        model.zero_grad(set_to_none=True)
    except Exception as error:  # a missing compiler, or an unsupported device: say so and go on
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    return advance, None


def counted(run, kind, *batch):
    """Output, evaluations of the force, and products with Jᵀ, of one call."""
    run.tally = []
    try:
        out = getattr(run, kind)(*batch)
    finally:
        tally, run.tally = run.tally, None
    return out, tally.count("force"), tally.count("product")


def finite(call):
    """What `call` returns, or None where the solver breaks down."""
    try:
        return call()
    except (RuntimeError, ValueError):  # a singular system, say
        return None


def synchronise(model):
    if model.device != "cpu":
        torch.cuda.synchronize()
