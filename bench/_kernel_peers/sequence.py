"""Peers for the selective scan, forward. B sequences, L steps, Dm channels, S states a channel."""

from __future__ import annotations

from typing import Any

from bench._kernel_peers.common import Call, Inputs, Make, NotRun, import_jax, jitted

# Of one tensor of all states; the parallel scan makes several.
MAX_STATES_BYTES = 2**30

NAMES = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "reset")


def jax_scan(inputs: Inputs) -> Call:
    """`lax.scan` over the steps: no more than one step's states at a time."""
    jax = import_jax()
    nn, jnp = jax.nn, jax.numpy

    def run(*arrays: Any) -> Any:
        x, delta, A, B, C, D, z, bias, first, reset = arrays

        def step(state: Any, row: Any) -> Any:
            x, size, B, C, reset = row
            state = jnp.where(reset[:, None, None], 0.0, state)
            state = jnp.exp(size[..., None] * A) * state + (size * x)[..., None] * B[:, None]
            return state, jnp.einsum("bds,bs->bd", state, C)

        rows = (x, nn.softplus(delta + bias), B, C, reset)
        final, y = jax.lax.scan(step, first, tuple(jnp.moveaxis(row, 1, 0) for row in rows))
        return (jnp.moveaxis(y, 0, 1) + D * x) * nn.silu(z), final

    return jitted(run, inputs, NAMES)


def jax_associative_scan(inputs: Inputs) -> Call:
    """`lax.associative_scan`: all states at once."""
    jax = import_jax()
    nn, jnp = jax.nn, jax.numpy
    if (size := 4 * inputs["x"].numel() * inputs["A"].shape[1]) > MAX_STATES_BYTES:
        raise NotRun(f"would keep states of {size / 2**30:.1f} GiB several times")

    def compose(earlier: Any, later: Any) -> Any:
        return earlier[0] * later[0], later[1] + later[0] * earlier[1]

    def run(*arrays: Any) -> Any:
        x, delta, A, B, C, D, z, bias, first, reset = arrays
        size = nn.softplus(delta + bias)
        decay = jnp.where(reset[..., None, None], 0.0, jnp.exp(size[..., None] * A))
        drive = (size * x)[..., None] * B[:, :, None]
        reach, own = jax.lax.associative_scan(compose, (decay, drive), axis=1)
        states = own + reach * first[:, None]
        y = jnp.einsum("blds,bls->bld", states, C) + D * x
        return y * nn.silu(z), states[:, -1]

    return jitted(run, inputs, NAMES)


PEERS: dict[str, dict[str, Make]] = {
    "selective_scan": {"jax scan": jax_scan, "jax associative_scan": jax_associative_scan}
}
