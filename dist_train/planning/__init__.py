"""What a run will send, hold and take, before it starts; and which machines should share a replica. docs/plan.md."""
