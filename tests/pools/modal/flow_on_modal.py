"""A flow that the worker's tests run in a sandbox."""

from prefect import flow, get_run_logger


@flow(name="on-modal")
def greet() -> str:
    get_run_logger().info("logged by the flow")
    print("printed by the flow")
    return "done"
