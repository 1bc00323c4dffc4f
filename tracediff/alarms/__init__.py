"""A look at one trace: alarms of what is wrong in itself, or unlike a reference on other inputs; never a verdict."""

from tracediff.alarms.result import Alarm, Look
from tracediff.alarms.symptoms import look

__all__ = ["Alarm", "Look", "look"]
