"""Goals: a sentence becomes a plan, the plan a workflow, and if that fails, a new plan is made, within bounds.

`plan` checks what a planner answers, and bounds a goal within a goal; `planners` has the port and its adapters;
`pursuit` plans, runs and plans again, and has the agent that offers `goal.pursue`.
"""
