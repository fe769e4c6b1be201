"""May this call happen? By rule; later also by people and by money."""
