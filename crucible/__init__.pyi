from crucible.api import job as job
from crucible.api import submit as submit
from crucible.api import sweep as sweep
from crucible.config import TrainConfig as TrainConfig
from crucible.estimate.request import estimate as estimate
from crucible.job_handle import JobHandle as JobHandle
from crucible.job_handle import Status as Status
from crucible.jobs.records import Limits as Limits
from crucible.run_config import RunConfig as RunConfig
from crucible.script_config import ScriptConfig as ScriptConfig

__version__: str
