"""Run and call AI agents from ordinary blocking code."""
