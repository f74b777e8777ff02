"""What does each step's result look like? One file a step; `style` holds the look they share."""
