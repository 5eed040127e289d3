"""How the schedule and the driver scale: the real ones, on virtual time, over actors that only draw their times."""
