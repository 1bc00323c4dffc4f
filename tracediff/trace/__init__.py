"""The trace file: the ordered records of one run, written while it runs and read on demand."""

from tracediff.trace.fingerprint import Sketch, Stats
from tracediff.trace.reader import Param, Record, Trace, open_trace
from tracediff.trace.recovery import recover
from tracediff.trace.writer import TraceWriter

__all__ = ["Param", "Record", "Sketch", "Stats", "Trace", "TraceWriter", "open_trace", "recover"]
