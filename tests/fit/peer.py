"""One of several processes that train together without Ray: python -m tests.fit.peer RANK SIZE FOLDER [spoil]

Prints what it holds at the end as JSON. `spoil`: its weights are changed on the way, as by a device that computes
wrongly.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.errors import RunFailed
from pipeline.fit import OnlineCodebook, Training
from pipeline.fit.team import Team
from pipeline.model import weights_hash
from tests.fit.cases import photographs, team_config


def main(rank: int, size: int, folder: Path, spoil: bool) -> None:
    torch.set_num_threads(1)
    if size > 1:
        store = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    restarts: list[int] = []
    restart_dead = OnlineCodebook.restart_dead

    def counted(self: OnlineCodebook, vectors: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        restarted = restart_dead(self, vectors, chosen)
        restarts.extend(restarted.tolist())
        return restarted

    OnlineCodebook.restart_dead = counted  # type: ignore[method-assign]
    team, training = Team(), Training(photographs(), team_config(workers=size))
    batches = []
    while not training.finished:
        report = training.advance()
        batches += [report.loss] if report else []
    if spoil:
        with torch.no_grad():
            training.model.encoder.conv_in.bias[0] += 1e-6
    error = None
    try:
        team.check_agreement(training.model)
    except RunFailed as failure:
        error = str(failure)
    training.model.save_pretrained(folder / f"{size}-{rank}")
    found = {"hash": weights_hash(training.model), "losses": batches, "restarts": restarts, "error": error}
    print(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), "spoil" in sys.argv)
