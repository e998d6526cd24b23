"""Work-arounds for MONAI Label 0.8.5, one file per defect; `docs/compat.md` is the table of them.

Nothing in site-packages is written to: classes, module functions and routes are
replaced in memory. Every `apply` is idempotent. Each file says where the defect
is and what is known of it upstream.

Who calls what:

- `apply_early` before the first import of `monailabel.interfaces`, anywhere.
- `apply_tasks` in every process that loads the app. Training, scoring and batch
  inference load it again in a child process, so `main.py` calls this.
- `apply_all` in the server, before its routes are built.

A file's `apply` imports MONAI Label when it runs, never when it is imported:
the first of them must come before that import.
"""

from __future__ import annotations

from iopfl.compat import (
    admin_routes,
    background_processes,
    batch_infer,
    blocking_endpoints,
    check_sums,
    cors,
    dataset_archive,
    dicom_proxy,
    file_access,
    handing_out,
    logs_page,
    mlflow_tracking,
    offline_pages,
    ohif_static,
    orphaned_child,
    plain_errors,
    pydicom_seg_import,
    request_files,
    server_paths,
    tokens,
    train_stats,
    unknown_names,
)


def apply_early() -> None:
    """Make `monailabel.interfaces` importable."""
    pydicom_seg_import.apply()


def apply_tasks() -> None:
    """Repair what an app is made of: datastore, tasks, inference."""
    apply_early()
    orphaned_child.apply()
    plain_errors.apply_to_child()
    mlflow_tracking.apply()
    train_stats.apply()
    batch_infer.apply()


def apply_all() -> None:
    """Repair the server as well: its processes, its endpoints, its pages."""
    apply_tasks()
    tokens.apply()  # before the endpoints are imported, which depend on what it replaces
    # The app copies its routers' routes when it is first imported: these precede that.
    dicom_proxy.apply()
    ohif_static.apply()
    blocking_endpoints.apply()
    admin_routes.apply()
    # What is applied last is asked first: a name that could be a path is refused
    # before anybody looks it up.
    handing_out.apply()
    check_sums.apply()
    unknown_names.apply()
    file_access.apply()
    background_processes.apply()
    dataset_archive.apply()
    logs_page.apply()
    offline_pages.apply()
    cors.apply()
    request_files.apply()
    server_paths.apply()
    plain_errors.apply()
