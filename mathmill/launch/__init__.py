"""Clusters, jobs and steps, their scripts, and how they start, end and are seen. Knows no maths."""
