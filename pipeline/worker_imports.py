"""What the server of worker processes imports, once for all of them; it ends with the process that started it."""

from pipeline.executors import end_with_parent

end_with_parent()

import pipeline.stages  # noqa: E402, F401
