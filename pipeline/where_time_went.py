"""Where the time of a run's jobs went, as a table and a picture: python pipeline/where_time_went.py [RUN] --help"""

from mathmill.stages import where_time_went

if __name__ == "__main__":
    where_time_went.main()
