"""What a person types and sees: arguments, exit codes, reporters, the console scripts."""
