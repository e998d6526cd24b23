"""What MONAI Label executes to find the app, in the server and in each child process."""

from iopfl.compat import apply_tasks

apply_tasks()

from iopfl.app import IOPFLApp  # noqa: E402

__all__ = ["IOPFLApp"]
