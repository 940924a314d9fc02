"""The closed form: bytes, messages and time of one dispatch or combine of expert parallelism.

Symbols. N nodes of G GPUs are R = N G ranks; E experts, of which a token chooses K; T tokens a rank, of
``hidden`` columns; b bytes a row. B_ib is the rate of a rank's link between nodes and B_nv of its link inside
one, in bytes/s and one direction, of which a share sigma is reached; t0 and alpha are the costs of an
exchange of no bytes, hierarchical and direct; tau is the time that a network card takes for a message.

There are two ways to send rows:

- hierarchical: a row crosses to each *node* that wants it once, to the GPU of the same place, which passes it
  on inside. What training and prefill use.
- direct: a row goes to each *expert* that wants it, in one hop. What decoding uses.

Both are the best that these ways can do on these links: what moela itself reaches is to be measured, and
`moela.ep.planner.calibration` puts the measured constants into the model. Validated against published figures
in tests/ep/test_planner_published.py.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from moela.ep.planner.topology import Topology

PAYLOADS = ("fp8", "bf16")
PATHS = ("hierarchical", "direct")
PHASES = ("dispatch", "combine")
FP8_GROUP = 128  # columns that share a float32 scale factor
SM_MARGIN = 1.25  # DeepEP's, on top of what the links can take


def split(num_experts: int, num_parts: int) -> list[int]:
    """Experts of each part: expert e is in part e * num_parts // num_experts, so sizes differ by one."""
    bounds = [-(-part * num_experts // num_parts) for part in range(num_parts + 1)]
    return [end - begin for begin, end in itertools.pairwise(bounds)]


def kappa(part_sizes: Sequence[int], K: int) -> float:
    """Expected number of parts (ranks, nodes) that a token's K experts are on, all choices equally likely.

    Sum over the parts of 1 - C(E - e, K) / C(E, K), with e the experts of the part: a part is missed if all
    K are among the others. With M equal parts this is M (1 - C(E - E/M, K) / C(E, K)), which DeepEP's
    get_theoretical_num_sms has as well.
    """
    E = sum(part_sizes)
    return sum(1 - math.comb(E - e, K) / math.comb(E, K) for e in part_sizes)


@dataclass(frozen=True)
class Sizes:
    """What is exchanged among whom, by the symbols of this file. E are the experts that lie on the ranks."""

    N: int
    G: int
    E: int
    K: int
    T: int
    hidden: int
    payload: str  # of rows in dispatch; combine is bfloat16

    @property
    def R(self) -> int:
        return self.N * self.G

    @property
    def codes_bytes(self) -> int:
        """A row of a dispatch alone: hidden e4m3 codes and a float32 for each 128, or hidden bfloat16."""
        fp8 = self.hidden + 4 * -(-self.hidden // FP8_GROUP)
        return fp8 if self.payload == "fp8" else self.sum_bytes

    @property
    def row_bytes(self) -> int:
        """b of a hierarchical dispatch: with K ids and weights of 8 bytes together, and 16 for the origin."""
        return self.codes_bytes + 8 * self.K + 16

    @property
    def sum_bytes(self) -> int:
        """b of a combine."""
        return 2 * self.hidden


@dataclass(frozen=True)
class Traffic:
    """How far a token's rows spread, and how unevenly they arrive.

    The skews phi are the busiest receiver's rows over the mean, in the median of batches; those that end in
    99, of which buffers are made, are exceeded in one batch of a hundred. The closed form has none: 1.
    """

    kappa_n: float  # nodes that want a token, its own included
    kappa_r: float  # ranks that want a token, its own included
    kappa_n_error: float = 0.0  # standard errors, of what was sampled
    kappa_r_error: float = 0.0
    phi_n: float = 1.0  # rows for a node
    phi_r: float = 1.0  # rows for a rank, once each
    phi_k: float = 1.0  # rows for a rank, once per expert
    phi_r_99: float = 1.0
    phi_k_99: float = 1.0
    phi_e_99: float = 1.0  # rows for an expert


def uniform(sizes: Sizes) -> Traffic:
    """All experts equally likely, without a limit on groups, in closed form."""
    ranks = split(sizes.E, sizes.R)
    nodes = [sum(ranks[begin : begin + sizes.G]) for begin in range(0, sizes.R, sizes.G)]
    return Traffic(kappa(nodes, sizes.K), kappa(ranks, sizes.K))


@dataclass(frozen=True)
class Exchange:
    """What one dispatch or combine moves per rank, and how long it takes. Times in seconds.

    ``terms`` names each resource with the time that it alone would take: they work at the same time, so the
    exchange takes ``fixed`` and the largest of them.
    """

    path: str
    phase: str
    bytes_between: float
    bytes_inside: float
    messages: float  # over the network card
    fixed: float
    terms: dict[str, float]
    num_sms: int | None = None  # that keep the links busy; None: not modelled

    @property
    def time(self) -> float:
        return self.fixed + max(self.terms.values())

    @property
    def limit(self) -> str:
        """The resource that takes longest, or "fixed cost" where that is the larger part."""
        name = max(self.terms, key=self.terms.__getitem__)
        return name if self.terms[name] > self.fixed else "fixed cost"


def exchange(
    path: str, phase: str, sizes: Sizes, traffic: Traffic, topology: Topology, num_sms: int | None = None
) -> Exchange:
    """A dispatch or combine by the way that `path` names. num_sms None: as many as it takes."""
    if path == "direct":
        return _direct(phase, sizes, traffic, topology)
    return _hierarchical(phase, sizes, traffic, topology, num_sms)


def _hierarchical(
    phase: str, sizes: Sizes, traffic: Traffic, topology: Topology, num_sms: int | None
) -> Exchange:
    """One row per node that wants it, then one per rank.

    V_ib = T kappa_n (N - 1) / N b and V_nv = T kappa_r (G - 1) / G b, as a row's own node and, of those that
    a GPU passes on, its own share stay. t = t0 + R signal + max(phi_n V_ib / (sigma B_ib), phi_r V_nv /
    (sigma B_nv), V_sm / num_sms). Combine is the same backwards: rows of a rank, then of a node, are added up
    before they go on.

    An SM reads T (1 + kappa_n) b and writes T (1 + kappa_n / N + kappa_r) b, inside one node T b and T
    kappa_r b, at the rates that DeepEP V2 reckons with; the number of SMs that it takes is what its analysis
    gives: 1.25 of what the slower link can take, even and at least 4.
    """
    N, G, R, T = sizes.N, sizes.G, sizes.R, sizes.T
    b = sizes.row_bytes if phase == "dispatch" else sizes.sum_bytes
    v_ib = T * traffic.kappa_n * (N - 1) / N * b
    v_nv = T * traffic.kappa_r * (G - 1) / G * b
    fixed, sigma = topology["t0"], topology["sigma"]
    terms = {"inside": traffic.phi_r * v_nv / (sigma * topology["b_nv"])}
    link_time = v_nv / topology["b_nv"]
    if N > 1:
        fixed += R * topology["signal"]
        terms["between"] = traffic.phi_n * v_ib / (sigma * topology["b_ib"])
        link_time = max(link_time, v_ib / topology["b_ib"])
    if topology.has("num_sms") and link_time:
        read = T * b * (1 + (traffic.kappa_n if N > 1 else 0))
        write = T * b * (traffic.kappa_r + (1 + traffic.kappa_n / N if N > 1 else 0))
        sm_time = max(read / topology["sm_read"], write / topology["sm_write"])  # of one SM
        if num_sms is None:
            num_sms = 2 * -(-max(4, math.ceil(SM_MARGIN * sm_time / link_time)) // 2)
        else:
            terms["SM copies"] = sm_time / num_sms
    return Exchange("hierarchical", phase, v_ib, v_nv, 0, fixed, terms, num_sms)


def _direct(phase: str, sizes: Sizes, traffic: Traffic, topology: Topology) -> Exchange:
    """One row, with a header of 16 bytes, per (token, expert), in one hop.

    M = T K rows, of which (R - G) / R leave the node and (G - 1) / R go to others in it. t = alpha +
    max(phi_k V_ib / (sigma B_ib), phi_k V_nv / (sigma B_nv), M (R - G) / R tau).
    """
    R, G = sizes.R, sizes.G
    b = 16 + (sizes.codes_bytes if phase == "dispatch" else sizes.sum_bytes)
    messages = sizes.T * sizes.K * (R - G) / R
    v_ib, v_nv = messages * b, sizes.T * sizes.K * (G - 1) / R * b
    sigma = topology["sigma"]
    terms = {"inside": traffic.phi_k * v_nv / (sigma * topology["b_nv"])}
    if sizes.N > 1:
        terms["between"] = traffic.phi_k * v_ib / (sigma * topology["b_ib"])
        terms["message rate"] = messages * topology["tau"]
    return Exchange("direct", phase, v_ib, v_nv, messages, topology["alpha"], terms)
