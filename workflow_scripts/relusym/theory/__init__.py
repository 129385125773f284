"""The paper's statements, one module each: a small exact or numerical demonstration that can fail.

Every `demonstrate(seed, draws)` returns a record body with the keys statement, claim, holds, draws and measured;
`holds` follows from the numbers in `measured` and the tolerances at the head of the module.
"""

from collections.abc import Callable

from relusym.theory import (
    example_2_1,
    example_c_1,
    example_c_2,
    lemma_2_2,
    lemma_e_1,
    proposition_2_3,
    proposition_b_1,
    proposition_d_1,
    proposition_d_4,
)

STATEMENTS: dict[str, Callable[..., dict]] = {
    "example_2_1": example_2_1.demonstrate,
    "lemma_2_2": lemma_2_2.demonstrate,
    "proposition_2_3": proposition_2_3.demonstrate,
    "proposition_b_1": proposition_b_1.demonstrate,
    "example_c_1": example_c_1.demonstrate,
    "example_c_2": example_c_2.demonstrate,
    "proposition_d_1": proposition_d_1.demonstrate,
    "proposition_d_4": proposition_d_4.demonstrate,
    "lemma_e_1": lemma_e_1.demonstrate,
}
