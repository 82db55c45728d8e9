"""One launch instead of hundreds: a function of arrays, recorded once as a CUDA graph.

A small network is bound by its launches: each of some hundred kernels takes less time to run than
to start.  A graph is started as a whole.  It repeats the very same kernels on the very same
memory, so a function can be recorded if it

- takes arrays and returns arrays, of the same shapes each time (others are recorded anew, and so
  is another precision),
- does not wait for the device: no ``float(x)``, ``if x.any()`` or ``x.get()`` inside,
- gets from its arguments, and not from variables outside, every number that changes.

What is recorded keeps its buffers: arguments are copied into the recorded ones, and the results are
the same arrays at each call, which the next call overwrites.
"""
from importlib import import_module

from tinydiff.backends.device import column
from tinydiff.backends.precision import precision

WARM_UP = 2                             # calls before recording: kernels compile, pools fill


class Recorded:
    """A function of arrays that runs as one graph on a device, and as it is elsewhere.

    Parameters
    ----------
    function : callable
        ``function(*arrays)`` returns an array or a tuple of arrays; see the rules above.
    recorder : object, optional
        What records: `CudaRecorder` unless a test has its own.

    Attributes
    ----------
    why : str or None
        Why the function runs as it is, where it does; None while a graph is in use.
    """

    def __init__(self, function, recorder=None):
        self.function = function
        self.recorder = recorder
        self.why = "not called yet"
        self.graphs = {}                # precision, arguments' shapes and dtypes: replay, ...

    def __call__(self, *arrays):
        """Run the function, by its graph where there is one."""
        if self.recorder is None and all(column(a) == "cuda" for a in arrays):
            self.recorder = CudaRecorder()
        if self.recorder is None or self.graphs is None:
            self.why = self.why if self.graphs is None else "arrays on the host have no graph"
            return self.function(*arrays)
        key = (precision(), *((a.shape, a.dtype.str) for a in arrays))
        if key not in self.graphs:
            try:
                self.graphs[key] = self._record(arrays)
            except RuntimeError as fault:                 # it waited, or the driver refuses
                self.graphs, self.why = None, f"not recorded: {' '.join(str(fault).split())}"
                return self.function(*arrays)
        replay, buffers, results = self.graphs[key]
        for buffer, array in zip(buffers, arrays, strict=True):
            if buffer is not array:
                buffer[...] = array
        replay()
        return results

    def _record(self, arrays):
        """Warm up, then record; return how to replay, and the buffers in and out."""
        buffers = [a.copy() for a in arrays]
        with self.recorder.memory():
            for _ in range(WARM_UP):
                self.function(*buffers)
            replay, results = self.recorder.record(lambda: self.function(*buffers))
        self.why = None
        return replay, buffers, results


class CudaRecorder:
    """Records with CuPy, on a stream and with a pool of memory of its own.

    What is allocated while recording belongs to the graph: were it given to somebody else
    afterwards, a replay would write into their arrays.
    """

    def __init__(self):
        cuda = import_module("cupy").cuda
        self.cuda = cuda
        self.stream = cuda.Stream(non_blocking=True)
        self.pool = cuda.MemoryPool()

    def memory(self):
        """Return a context in which arrays come from the graph's own pool."""
        return self.cuda.using_allocator(self.pool.malloc)

    def record(self, run):
        """Record what ``run()`` launches; return how to replay it, and its results."""
        self.cuda.runtime.deviceSynchronize()
        with self.stream:
            run()                                         # once more, on this stream
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                results = run()
            finally:
                graph = self.stream.end_capture()
        current = self.cuda.get_current_stream

        def replay():
            graph.launch(stream=current())
        return replay, results
