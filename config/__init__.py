"""What the operator wrote: checked, frozen, reloaded."""
