"""Goals: a sentence becomes a plan, the plan a workflow, and if that fails, a new plan is made, within bounds.

`plan` checks what a planner answers, `planner` is the port, `chat` asks a language model,
`pursuit` plans, runs and plans again, `runs` finds what was started before, `task_runs` does so for a goal that is a
task, `share` bounds a goal within a goal, and `agent` is the agent that offers `goal.pursue`.
"""
