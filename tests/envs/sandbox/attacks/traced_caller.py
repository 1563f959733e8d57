"""Trace the frames that called us, and raise in them when we are done."""


# status=ok|nonzero|timeout|signal wall_s=2
def tracer(frame, event, argument):
    raise ZeroDivisionError


frame = sys._getframe()
while frame is not None:
    frame.f_trace = tracer
    frame.f_trace_lines = True
    for value in list(frame.f_locals.values()):
        if hasattr(value, "clear") and not isinstance(value, dict):
            try:
                value.clear()
            except Exception:
                pass
    frame = frame.f_back
sys.settrace(tracer)
