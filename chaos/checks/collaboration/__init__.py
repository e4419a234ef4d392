"""The checks of what agents and people do together: approvals, workflow patterns, message threads and votes."""
