"""Trinity's tool-call task with a reward that never fails and metrics that its evaluation can log.

Prompt and task layout are those of Trinity's `tool_call_workflow`; that one leaves an experience's metrics empty, so
that `mode: bench` would have no accuracy to report.
"""

from __future__ import annotations

from trinity.common.workflows.customized_toolcall_workflows import construct_prompt
from trinity.common.workflows.workflow import AsyncSimpleWorkflow, Task

from trinity_rec.tool_call.reward import ToolCallReward


class ToolCallWorkflow(AsyncSimpleWorkflow):
    """In a YAML `default_workflow_type: trinity_rec.tool_call.workflow.ToolCallWorkflow`.

    A task is a row as `trinity_rec.tool_call.toolace` writes it: `raw_system`, `tools` (JSON), `conversations` (turns
    with `from` and `value`) and `answer` (JSON), the taskset's `response_key`. Without a reward function in the YAML
    it is `ToolCallReward`; `reward_fn_args` are its arguments.
    """

    can_reset = can_repeat = True  # all responses of a group in one request, as Trinity's own workflow

    def reset(self, task: Task) -> None:
        if task.reward_fn is None:
            task.reward_fn = ToolCallReward
        super().reset(task)

    def format_messages(self) -> list[dict[str, str]]:
        """The conversation up to the turn in question, below a system message with the tools and the format."""
        return construct_prompt(self.raw_task)
