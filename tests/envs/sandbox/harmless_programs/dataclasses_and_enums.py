from dataclasses import dataclass, replace
from enum import Enum


class C(Enum):
    A = 1


@dataclass(frozen=True)
class P:
    x: int
    c: C = C.A


print(replace(P(1), x=2))

# > P(x=2, c=<C.A: 1>)
