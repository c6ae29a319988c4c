"""Keep a pole upright without observed velocities; `cartpole_balance`, which has them, is the control."""

from __future__ import annotations

from envs_gpu.observation import ObservationTerm
from envs_gpu.tasks import task
from envs_gpu.tasks.cartpole_balance import CartpoleBalance


@task("cartpole_balance_positions")
class CartpoleBalancePositions(CartpoleBalance):
    """Observation `policy` `[N, 3]`: velocities follow from a memory of the positions before."""

    def observation(self) -> dict[str, tuple[ObservationTerm, ...]]:
        terms = super().observation()["policy"]
        return {"policy": tuple(term for term in terms if not term.name.endswith("velocity"))}
