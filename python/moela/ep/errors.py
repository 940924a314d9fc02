"""What an exchange between ranks raises when a rank does not take part in it."""


class EpError(RuntimeError):
    """An exchange failed: its buffer is broken and has to be closed; EpBuffer, built again, recovers.

    Attributes:
        ranks: the ranks of the group that did not answer, as far as this rank knows.
        epoch: the exchange, counted from 1 in the life of the buffer.
    """

    what = "no answer from"

    def __init__(self, ranks: list[int], epoch: int, detail: str) -> None:
        self.ranks, self.epoch, self.detail = list(ranks), epoch, detail
        who = " and ".join(f"rank {rank}" for rank in self.ranks) or "a rank"
        super().__init__(f"ep: epoch {epoch}: {self.what} {who}: {detail}")

    def as_text(self) -> str:
        """For a rank that is told."""
        ranks = ",".join(map(str, self.ranks[:16]))  # a header has room for so many
        return f"{type(self).__name__} {ranks} {self.detail}"

    @staticmethod
    def from_text(text: str, epoch: int) -> "EpError | None":
        """What as_text was made of; None: the text is of something else."""
        kind = next((k for k in (EpTimeout, EpPeerLost) if text.startswith(f"{k.__name__} ")), None)
        if kind is None:
            return None
        _, ranks, detail = text.split(" ", 2)
        return kind([int(rank) for rank in ranks.split(",") if rank], epoch, detail)

    def __reduce__(self):  # a process pool sends exceptions home by pickle
        return type(self), (self.ranks, self.epoch, self.detail)


class EpTimeout(EpError):  # noqa: N818 (the name of what it tells)
    """A rank did not take part before the deadline, though it may be alive: it is slow, stopped or gone."""

    what = "no answer in time from"


class EpPeerLost(EpError):  # noqa: N818
    """A rank has ended, or has closed its buffer: it will never take part."""

    what = "lost"
