"""How far a run is and how its jobs fare: python pipeline/status.py --help"""

from mathmill.stages import status

if __name__ == "__main__":
    status.main()
