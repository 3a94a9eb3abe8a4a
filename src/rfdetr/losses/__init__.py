"""What training minimises: assignment of queries to targets (`matcher`) and the loss terms
(`criterion`).
"""
