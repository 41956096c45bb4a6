"""A program that uses eqjax, for a type checker: it must find these types, and no others."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

import jax

import eqjax as ej
from eqjax.training import TensorBoard, Tracker, TrainingReport

field = ej.fields.RecurrentField(4, key=jax.random.key(0))
assert_type(ej.AsymEP(free=ej.Anderson(rtol=1e-4)), ej.AsymEP)
assert_type(TrainingReport().seconds_per_step, float)
tracker: Tracker = TensorBoard()
wrong: Tracker = print  # pyright: ignore[reportAssignmentType]
ej.Anderson(no_such_setting=1)  # pyright: ignore[reportCallIssue]
