"""Which small experiment answers one question about a teacher, a student or their maps?"""
